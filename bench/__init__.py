"""Benches: each prints a table, and flat rows as JSON where asked."""
