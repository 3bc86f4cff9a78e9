"""A run and its predictions looked at: tables, curves, figures, and the page that shows them."""
