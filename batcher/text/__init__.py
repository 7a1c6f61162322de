"""Pure functions over what models write."""
