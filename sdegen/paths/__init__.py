"""Paths: from data to noise, and what follows from alpha and sigma."""
