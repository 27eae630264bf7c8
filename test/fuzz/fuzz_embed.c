/*
 * fuzz_embed.c
 *	  libFuzzer target: the embedder on any bytes.
 *
 * Checked: no undefined behaviour and no access out of bounds (sanitizers);
 * the vector is zero or has unit length; cutting the text between two code
 * points does not change a bit.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vector/vector_int.h"

extern int	LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

/*
 * zeroed: memory for the embedder.
 */
static void *
zeroed(size_t size)
{
	void	   *p = calloc(1, size);

	if (p == NULL)
		abort();
	return p;
}

static const SwarmEmbedAllocator allocator = {zeroed, free};

/*
 * embed: the vector of a text that is added in two pieces.
 */
static void
embed(const char *text, size_t size, size_t cut, int dims, float *vector)
{
	SwarmEmbedder *e = swarm_embedder_begin(dims, &swarm_embed_weights,
											&allocator);

	swarm_embedder_add(e, text, cut);
	swarm_embedder_add(e, text + cut, size - cut);
	swarm_embedder_finish(e, vector);
}

int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	float		whole[300];
	float		cut[300];
	int			dims;
	size_t		wanted;
	size_t		at = 0;
	double		squares = 0;

	if (size < 2)
		return 0;
	dims = SWARM_EMBED_MIN_DIMS + data[0];
	wanted = (size - 2) * data[1] / 255;
	data += 2;
	size -= 2;
	while (at < wanted)
	{
		uint32_t	cp;

		at += swarm_vector_decode(data + at, size - at, &cp);
	}

	embed((const char *) data, size, 0, dims, whole);
	embed((const char *) data, size, at, dims, cut);
	if (memcmp(whole, cut, dims * sizeof(float)) != 0)
		abort();
	for (int i = 0; i < dims; i++)
		squares += (double) whole[i] * whole[i];
	if (squares != 0 && !(fabs(squares - 1) < 1e-5))
		abort();
	return 0;
}
