"""The engine: words, records, running, statistics, command line. It imports none of the other rooms."""
