"""The formats of tables, a module each; each is a function of tables and a `Style` to text that ends in a newline."""
