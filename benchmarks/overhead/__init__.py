"""What grouping costs: cells of a grid of methods, numbers of clients and numbers of groups."""
