/*
 * json.h
 *	  JSON whose strings a database can hold.
 */
#ifndef SWARM_BASE_JSON_H
#define SWARM_BASE_JSON_H

/*
 * What JSON may escape but text in this database cannot hold (zero, halves of
 * surrogate pairs, characters that its encoding does not have) becomes U+FFFD, or
 * a question mark where the encoding is not UTF8.  In place; returns its
 * argument.  Needs a transaction unless the encoding is UTF8.
 */
extern char *swarm_json_storable(char *text);

#endif							/* SWARM_BASE_JSON_H */
