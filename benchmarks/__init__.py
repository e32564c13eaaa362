"""What aetherscale costs, measured beside a floor or a peer in the same run: `just bench`."""
