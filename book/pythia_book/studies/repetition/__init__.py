"""repetition"""
