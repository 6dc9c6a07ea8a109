"""Resurface: does an unlearned language model still hold the knowledge it was made to forget?"""
