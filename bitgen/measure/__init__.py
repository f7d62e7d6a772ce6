"""Rates, profiles, energy, comparisons with other engines, and verification."""
