"""Data of the user's own: files, folders and data sets of the hub, split and checked."""
