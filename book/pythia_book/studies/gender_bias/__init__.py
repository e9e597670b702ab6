"""gender_bias"""
