"""How long networks take where they will run: operators measured alone, a model learned from them and kept."""
