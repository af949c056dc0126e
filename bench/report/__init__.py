"""Results files, and the README's tables and figures made of them: `make readme`, `make plots`."""
