"""From a document to dialogue rows: rules for fiction with quotation marks live in `rules`."""
