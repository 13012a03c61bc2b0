"""The formats of trainers, a module for each kind: its writer, its snippet, and `FORMATS`, what it offers by name."""
