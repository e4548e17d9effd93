"""What docs/fill.py puts into the pages: tables and figures from the records in results/."""
