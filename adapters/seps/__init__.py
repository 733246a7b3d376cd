"""SEPS and LAPS: image-text matching by words and the patches that matter to them, trained here."""
