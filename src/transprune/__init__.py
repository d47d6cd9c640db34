"""transprune."""
