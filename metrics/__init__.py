"""One file per metric; each exports `metric(...) -> Metric`."""
