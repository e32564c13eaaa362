"""Components, each with its meaning and its drivers, and the one actor that runs all of them."""
