"""The dialects that clients speak to us: how a request is read, an answer written and an error told. Pure."""
