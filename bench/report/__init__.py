"""Results files, and the pages' tables and figures made of them: `make readme`."""
