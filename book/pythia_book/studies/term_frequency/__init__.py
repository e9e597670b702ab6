"""term_frequency"""
