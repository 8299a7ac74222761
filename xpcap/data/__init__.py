"""Vocabulary, data folders, the built-in scenes, and feature extraction."""
