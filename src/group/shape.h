/*
 * shape.h
 *		What the replicated tables are on each member.
 */
#ifndef REPL_ML_SHAPE_H
#define REPL_ML_SHAPE_H

/* in shape.c */
extern void repl_ml_shape_tell(bool called);

#endif							/* REPL_ML_SHAPE_H */
