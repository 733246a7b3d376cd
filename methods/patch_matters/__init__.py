"""Patch Matters: describe parts of a picture apart, then fuse what holds; `main` exports `method`."""
