"""Runs in; tables, pictures and pages out."""
