"""One file per benchmark; each exports `task(...) -> Task`."""
