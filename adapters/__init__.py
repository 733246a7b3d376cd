"""One file per kind of model; each exports `model(...) -> Model`."""
