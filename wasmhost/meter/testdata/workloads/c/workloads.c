// Workloads in C, to measure what metering costs and to see that it changes no result.
//
// Each exported function is a workload: name(n) does its work n times and returns a sum of
// all that it found. Input is made from a fixed seed at the first call, so that a sum is
// the same on every machine. There is no libc: what a loop here costs is the loop.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EXPORT(name) __attribute__((export_name(#name)))
#define SIZE (64 << 10)

static u8 in[SIZE], out[2 * SIZE];
static u32 words[SIZE / 16];

void *memcpy(void *to, const void *from, unsigned long n) { return __builtin_memcpy(to, from, n); }
void *memset(void *to, int c, unsigned long n) { return __builtin_memset(to, c, n); }

static u64 rng;

static u32 rnd(void) {
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (u32)(rng >> 16);
}

// text fills in with lines of lower-case words, once.
static void text(void) {
	static int done;
	if (done)
		return;
	done = 1;
	rng = 88172645463325252ull;
	for (u32 i = 0; i < SIZE; i++) {
		u32 r = rnd() % 64;
		in[i] = r < 52 ? 'a' + r % 26 : r < 61 ? ' ' : '\n';
	}
}

// Hashes.

EXPORT(fnv) u64 fnv(u32 n) {
	text();
	u64 sum = 0;
	while (n--) {
		u64 h = 14695981039346656037ull;
		for (u32 i = 0; i < SIZE; i++)
			h = (h ^ in[i]) * 1099511628211ull;
		sum += h + n;
	}
	return sum;
}

EXPORT(crc32) u64 crc32(u32 n) {
	static u32 table[256];
	text();
	for (u32 i = 0; i < 256; i++) {
		u32 c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
		table[i] = c;
	}
	u64 sum = 0;
	while (n--) {
		u32 c = ~0u;
		for (u32 i = 0; i < SIZE; i++)
			c = table[(c ^ in[i]) & 0xff] ^ c >> 8;
		sum += (u64)~c + n;
	}
	return sum;
}

static const u32 round_keys[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static u32 ror(u32 x, int n) { return x >> n | x << (32 - n); }

static void sha_block(u32 s[8], const u8 *p) {
	u32 w[64], v[8];
	for (int i = 0; i < 16; i++)
		w[i] = (u32)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		u32 a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) + w[i - 7] + (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
	}
	for (int i = 0; i < 8; i++)
		v[i] = s[i];
	for (int i = 0; i < 64; i++) {
		u32 t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + round_keys[i] + w[i];
		u32 t2 = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
		for (int k = 7; k > 0; k--)
			v[k] = v[k - 1];
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		s[i] += v[i];
}

EXPORT(sha256) u64 sha256(u32 n) {
	text();
	u32 s[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	while (n--)
		for (u32 i = 0; i < SIZE; i += 64)
			sha_block(s, in + i);
	return (u64)s[0] << 32 | s[7];
}

// Text.

// scan looks for words that are not there, octet by octet: the tightest loop there is.
EXPORT(scan) u64 scan(u32 n) {
	static const char *needles[] = {"viagraz", "qqqqq", "winner!", "zzyzx"};
	text();
	u64 found = 0;
	while (n--) {
		const char *needle = needles[n & 3];
		for (u32 i = 0; i + 8 < SIZE; i++) {
			u32 k = 0;
			while (needle[k] && in[i + k] == (u8)needle[k])
				k++;
			if (k > 2)
				found += i + k;
		}
	}
	return found + 1;
}

EXPORT(base64) u64 base64(u32 n) {
	static const char *alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	u8 back[256] = {0};
	text();
	for (int i = 0; i < 64; i++)
		back[(u8)alphabet[i]] = i;
	u64 sum = 0;
	while (n--) {
		u32 o = 0;
		for (u32 i = 0; i + 3 <= SIZE; i += 3) {
			u32 v = in[i] << 16 | in[i + 1] << 8 | in[i + 2];
			for (int s = 18; s >= 0; s -= 6)
				out[o++] = alphabet[v >> s & 63];
			if (i % 57 == 54)
				out[o++] = '\n';
		}
		u32 v = 0, bits = 0;
		for (u32 i = 0; i < o; i++) {
			if (out[i] == '\n')
				continue;
			v = v << 6 | back[out[i]];
			if ((bits += 6) >= 8) {
				bits -= 8;
				sum = sum * 31 + (u8)(v >> bits);
			}
		}
	}
	return sum;
}

// headers reads in as header fields: names up to a colon (here: a space), values that go on
// in lines that begin with a space, words in any case.
EXPORT(headers) u64 headers(u32 n) {
	text();
	u64 sum = 0;
	while (n--) {
		enum { NAME, VALUE, LINE_END } state = NAME;
		u32 fields = 0, folded = 0, name = 5381, words_seen = 0;
		for (u32 i = 0; i < SIZE; i++) {
			u8 c = in[i];
			switch (state) {
			case LINE_END:
				if (c == ' ') {
					folded++;
					state = VALUE;
					break;
				}
				fields++;
				sum += name;
				name = 5381;
				state = NAME;
				// fall through
			case NAME:
				if (c == ' ')
					state = VALUE;
				else if (c == '\n')
					state = LINE_END;
				else
					name = name * 33 ^ (c & 0xdf);
				break;
			case VALUE:
				if (c == '\n')
					state = LINE_END;
				else if (c == ' ')
					words_seen++;
				else if (c == 'x')
					sum += i;
			}
		}
		sum += fields * 3 + folded * 5 + words_seen * 7;
	}
	return sum;
}

// Calls.

__attribute__((noinline)) static u32 fib1(u32 n) { return n < 2 ? n : fib1(n - 1) + fib1(n - 2); }

// What a compiler may not know to be the same at each turn.
static volatile u32 twenty = 20, none = 0;

EXPORT(fib) u64 fib(u32 n) {
	u64 sum = 0;
	while (n--)
		sum += fib1(twenty);
	return sum;
}

// queens counts the ways of eight queens: recursion that has a loop in it.
static u32 place(u32 row, u32 cols, u32 left, u32 right) {
	if (row == 8)
		return 1;
	u32 ways = 0;
	for (u32 free = 0xff & ~(cols | left | right); free; free &= free - 1) {
		u32 q = free & -free;
		ways += place(row + 1, cols | q, (left | q) << 1, (right | q) >> 1);
	}
	return ways;
}

EXPORT(queens) u64 queens(u32 n) {
	u64 sum = 0;
	while (n--)
		sum += place(none, 0, 0, 0);
	return sum;
}

typedef int (*less)(u32, u32);
static int by_value(u32 a, u32 b) { return a < b; }
static int by_last_digits(u32 a, u32 b) { return a % 1000 < b % 1000; }
static less orders[] = {by_value, by_last_digits};

// quicksort calls the order through a table of functions.
static void quicksort(u32 *a, int n, less lt) {
	while (n > 1) {
		u32 pivot = a[n / 2];
		int i = 0, j = n - 1;
		while (i <= j) {
			while (lt(a[i], pivot))
				i++;
			while (lt(pivot, a[j]))
				j--;
			if (i <= j) {
				u32 t = a[i];
				a[i++] = a[j];
				a[j--] = t;
			}
		}
		quicksort(a, j + 1, lt);
		a += i;
		n -= i;
	}
}

EXPORT(sort) u64 sort(u32 n) {
	u64 sum = 0;
	rng = 88172645463325252ull;
	while (n--) {
		for (u32 i = 0; i < SIZE / 16; i++)
			words[i] = rnd();
		quicksort(words, SIZE / 16, orders[n & 1]);
		for (u32 i = 0; i < SIZE / 16; i++)
			sum = sum * 31 + words[i];
	}
	return sum;
}

// Numbers, vectors, blocks of memory.

typedef struct { double x, y, z, vx, vy, vz, m; } body;

static double root(double x) { return __builtin_sqrt(x); }

EXPORT(nbody) u64 nbody(u32 n) {
	body b[5];
	rng = 88172645463325252ull;
	for (int i = 0; i < 5; i++) {
		double *f = (double *)&b[i];
		for (int k = 0; k < 7; k++)
			f[k] = rnd() % 1000 / 100.0 + 0.1;
	}
	for (u32 step = 0; step < n * 500; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
				double d2 = dx * dx + dy * dy + dz * dz + 0.01, mag = 0.0001 / (d2 * root(d2));
				b[i].vx -= dx * b[j].m * mag;
				b[i].vy -= dy * b[j].m * mag;
				b[i].vz -= dz * b[j].m * mag;
				b[j].vx += dx * b[i].m * mag;
				b[j].vy += dy * b[i].m * mag;
				b[j].vz += dz * b[i].m * mag;
			}
		for (int i = 0; i < 5; i++) {
			b[i].x += 0.0001 * b[i].vx;
			b[i].y += 0.0001 * b[i].vy;
			b[i].z += 0.0001 * b[i].vz;
		}
	}
	union { double d; u64 u; } sum = {.d = 0};
	for (int i = 0; i < 5; i++)
		sum.d += b[i].x + b[i].vy;
	return sum.u;
}

typedef u8 v16 __attribute__((vector_size(16)));

// simd counts upper-case and sums octets, sixteen at a time.
__attribute__((target("simd128"))) EXPORT(simd) u64 simd(u32 n) {
	text();
	u64 sum = 0;
	v16 zero = {0}, low = zero + (u8)'a', high = zero + (u8)'m', mix = zero + 7;
	for (u32 r = 0; r < n * 8; r++) {
		v16 acc = zero;
		for (u32 i = 0; i < SIZE; i += 16) {
			v16 v = *(v16 *)(in + i);
			acc += (v16)(v >= low) & (v16)(v <= high) & mix;
			acc ^= v;
		}
		for (int k = 0; k < 16; k++)
			sum = sum * 31 + acc[k] + r;
	}
	return sum;
}

// bulk moves and fills blocks of all sizes with the instructions made for it.
__attribute__((target("bulk-memory"))) EXPORT(bulk) u64 bulk(u32 n) {
	text();
	u64 sum = 0;
	while (n--)
		for (u32 size = 16; size <= SIZE; size *= 2) {
			volatile u32 v = size; // a size that the compiler knows is copied word by word
			__builtin_memcpy(out + 64, in, v);
			__builtin_memmove(out + 17, out + 64, v);
			__builtin_memset(out + size / 2 + 17, (int)n, v / 2);
			sum = sum * 31 + out[17 + size / 3] + out[size];
		}
	return sum;
}

// machine runs a program of a small stack machine: a switch in a loop, which is a br_table.
EXPORT(machine) u64 machine(u32 n) {
	// x = 1000; acc = 0; do { acc = acc * 3 + x; if (acc & 1) acc ^= x << 4; x-- } while (x)
	static const u8 program[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
	u64 sum = 0;
	while (n--) {
		u64 acc = n, t = 0;
		u32 x = 1000, pc = 0;
		for (;;) {
			switch (program[pc++]) {
			case 0: t = acc; break;
			case 1: t = t * 3; break;
			case 2: acc = t + x; break;
			case 3: t = acc & 1; break;
			case 4: if (!t) pc = 7; break;
			case 5: t = (u64)x << 4; break;
			case 6: acc ^= t; break;
			case 7: x--; break;
			case 8: if (x) pc = 0; break;
			case 9: goto done;
			}
		}
	done:
		sum += acc;
	}
	return sum;
}
