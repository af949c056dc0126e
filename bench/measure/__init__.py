"""How time, memory and launches are measured, and on what machine."""
