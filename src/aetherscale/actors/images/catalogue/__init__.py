"""The catalogue: images of distributions that are fetched by their names. Data, how it is read, and how it is kept."""
