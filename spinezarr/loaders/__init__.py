"""Stores and streams as training libraries take them; most modules need a library of their own."""
