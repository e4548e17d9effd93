"""Experiments: studies (`experiments`), tables and pages (`report`), speed (`bench`), propositions (`theory`)."""
