"""Recurrent cells compared: does an antisymmetric one earn its keep?"""
