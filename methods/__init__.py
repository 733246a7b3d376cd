"""One file per method; each exports `method(model, ...) -> Model`."""
