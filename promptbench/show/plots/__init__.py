"""Pictures of stored results, one module per kind: `data(source)` gives plain figures, `draw(data)` the picture."""
