"""Tables and figures, computed from `result.json` files and gap reports only."""
