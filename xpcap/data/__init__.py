"""Words, data folders, the built-in scenes, and sets built from COCO's files."""
