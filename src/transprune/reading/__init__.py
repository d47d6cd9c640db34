"""Reading a model: everything here returns values and changes nothing."""
