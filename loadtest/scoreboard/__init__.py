"""The scoreboard: measured promises of the server, one row each (`make bench`, `make bench ROW=S13`)."""
