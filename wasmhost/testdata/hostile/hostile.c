// A filter that means harm. What it does is in its configuration, {"do": "NAME"}, and is done
// at the hooks rcpt and message, or at its start if NAME begins with init_. At other hooks it
// has no objection. hostile_test.go says what must become of each.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#define MG1(result, name, ...) __attribute__((import_module("mg1"), import_name(#name))) extern result name(__VA_ARGS__)
#define WASI(name, ...) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) extern i32 name(__VA_ARGS__)
#define EXPORT(name) __attribute__((export_name(#name)))

MG1(i32, subscribe, u64 hooks);
MG1(i32, get, u32 field, u32 index, void *buf, u32 cap);
MG1(i32, config, u32 off, void *buf, u32 cap);
MG1(i32, reply, const void *p, u32 n);
MG1(i32, tag, const void *k, u32 kn, const void *v, u32 vn);
MG1(i32, log, u32 level, const void *p, u32 n);
MG1(i64, now, void);
MG1(i32, random, void *buf, u32 n);
MG1(i32, sess_get, const void *k, u32 kn, void *buf, u32 cap);
MG1(i32, sess_set, const void *k, u32 kn, const void *v, u32 vn);
MG1(i64, hdr_get, i32 i, void *buf, u32 cap);
MG1(i32, hdr_find, const void *p, u32 n, i32 from);
MG1(i32, hdr_raw, i32 off, void *buf, u32 cap);
MG1(i32, hdr_add, i32 at, const void *n, u32 nn, const void *v, u32 vn);
MG1(i32, body_read, i64 off, void *buf, u32 n);
MG1(i32, body_splice, i64 off, i64 del, const void *p, u32 n);
MG1(i32, body_new, void);
MG1(i32, body_write, const void *p, u32 n);
MG1(i32, rcpt_add, const void *p, u32 n);
MG1(i32, rcpt_verdict, i32 i, u64 verdict);
MG1(i32, score, const void *k, u32 kn, i64 milli);
MG1(i64, part_len, i32 i, i32 form);
MG1(i32, part_read, i32 i, i32 form, i64 off, void *buf, u32 n);
MG1(i32, part_info, i32 i, void *buf, u32 cap);
MG1(i32, match_set, i32 kind, const void *p, u32 n);
MG1(i32, match, i32 set, i32 part, i64 off, void *buf, u32 cap);
MG1(i32, hash, i32 alg, i32 part, void *buf, u32 cap);
MG1(i32, kv_set, const void *k, u32 kn, const void *v, u32 vn, i64 ttl);
MG1(i32, kv_get, const void *k, u32 kn, void *buf, u32 cap);
MG1(i32, dns, u32 type, const void *n, u32 nn, void *buf, u32 cap);
MG1(i32, submit, u32 kind, const void *p, u32 n);
MG1(i32, wait, u32 h, i32 timeout, void *buf, u32 cap);
WASI(fd_write, u32 fd, const void *vecs, u32 count, u32 *done);
WASI(poll_oneoff, const void *subs, void *events, u32 count, u32 *done);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_exit"))) extern void proc_exit(u32 code);
WASI(random_get, void *buf, u32 n);

enum { CONTINUE, ACCEPT, REJECT, TEMPFAIL };
enum { INIT, RCPT = 6, MESSAGE = 10 };

static u8 mailbox[4096], block[64 << 10];
static char mode[64];
static volatile u32 sink, zero;

void *memset(void *to, int c, unsigned long n) { return __builtin_memset(to, c, n); }
void *memcpy(void *to, const void *from, unsigned long n) { return __builtin_memcpy(to, from, n); }

EXPORT(mg1_hook) u64 mg1_hook(u32 hook, u32 len);
EXPORT(mg1_init) u64 mg1_init(u32 minor);

static u64 verdict(u32 action, u32 code, u32 class, u32 text) {
	return action | (u64)code << 8 | (u64)class << 24 | 7ull << 27 | 1ull << 37 | (u64)text << 48;
}

// Time.

static u64 loop(void) {
	for (;;)
		sink++;
}

// exponential has no loop, and ends when the sun has.
__attribute__((noinline)) static u32 exponential(u32 n) { return n == zero ? sink : exponential(n - 1) + exponential(n - 1); }

// ping and pong call each other through a table, without a loop.
static u32 ping(u32 n), pong(u32 n);
static u32 (*volatile next[])(u32) = {ping, pong};
static u32 ping(u32 n) { return n == 0 ? 0 : next[1](n - 1) + next[1](n - 1); }
static u32 pong(u32 n) { return n == 0 ? 1 : next[0](n - 1) + next[0](n - 1); }

static u64 fill(void) {
	volatile u32 pages = __builtin_wasm_memory_grow(0, 200);
	for (int i = 0; i < 1000; i++)
		__builtin_memset((void *)(u32)(pages << 16), i, 200 << 16);
	return CONTINUE;
}

static u64 copy(void) {
	u32 at = __builtin_wasm_memory_grow(0, 200) << 16;
	for (;;)
		__builtin_memmove((u8 *)at + 1, (u8 *)at, (200 << 16) - 1);
}

// sleep asks for an hour, again and again.
static u64 sleep(void) {
	static struct { u64 data, tag; u32 clock, pad; u64 timeout, precision; u32 flags, pad2; } sub = {.clock = 1, .timeout = 3600000000000ull};
	static u8 event[32];
	u32 n;
	for (;;)
		poll_oneoff(&sub, event, 1, &n);
}

// nap sleeps for no time, for ever.
static u64 nap(void) {
	static u8 sub[64 * 48], event[64 * 32];
	u32 n;
	for (;;)
		poll_oneoff(sub, event, 64, &n);
}

// Stack.

__attribute__((noinline)) static u32 deep(u32 n) { return n + 1 == zero ? 0 : deep(n + 1) + sink; }

// wide has a large frame in memory, so that it runs into what lies below the stack.
__attribute__((noinline)) static u32 wide(u32 n) {
	volatile u8 frame[4096];
	frame[n & 4095] = n;
	return n == zero ? 0 : wide(n + 1) + frame[zero];
}

// Memory.

static u64 grow(void) {
	while (__builtin_wasm_memory_grow(0, 1) != -1ul)
		((u8 *)0)[(__builtin_wasm_memory_size(0) << 16) - 1] = 1;
	return CONTINUE;
}

static u64 grow_and_trap(void) {
	grow();
	__builtin_trap();
}

// Floods: imports, called without end. What they do is the host's work, and must be paid for.

static u64 flood_log(void) {
	for (;;)
		log(3, block, sizeof block);
}

static u64 flood_stderr(void) {
	static struct { const void *p; u32 n; } vecs[64];
	u32 done;
	for (int i = 0; i < 64; i++)
		vecs[i].p = block, vecs[i].n = sizeof block;
	for (;;)
		fd_write(2, vecs, 64, &done);
}

static u64 flood_random(void) {
	for (;;)
		random(block, 4096), random_get(block, sizeof block);
}

static u64 flood_get(void) {
	for (;;)
		get(20, -1, block, sizeof block), now();
}

static u64 flood_session(void) {
	for (u32 i = 0;; i++)
		sess_set(&i, sizeof i, block, i % 20000), sess_get(&i, sizeof i, block, 100);
}

static u64 flood_find(void) {
	for (;;)
		hdr_find("x-not-there", 11, 0), hdr_raw(0, block, sizeof block);
}

static u64 flood_header(void) {
	for (;;)
		hdr_add(-1, "X-Flood", 7, "1", 1), hdr_get(0, block, sizeof block);
}

static u64 flood_tags(void) {
	for (u32 i = 0;; i++) {
		u8 key[2] = {'a' + i % 26, 'a' + i / 26 % 26};
		tag(key, 2, "1", 1);
	}
}

static u64 flood_body(void) {
	body_new();
	for (;;)
		body_read(0, block, sizeof block), body_write(block, sizeof block), body_splice(0, 0, block, sizeof block);
}

static u64 flood_rcpts(void) {
	for (u32 i = 0;; i++) {
		u8 addr[] = "aa@example.com";
		addr[0] += i % 26, addr[1] += i / 26 % 26;
		rcpt_add(addr, 14);
	}
}

// flood_parts reads an encoded part from its end to its front, an octet at a time.
static u64 flood_parts(void) {
	for (i64 n = part_len(2, 1), off = n;; off = off > 0 ? off - 1 : n)
		part_read(2, 1, off, block, 1), part_info(2, block, sizeof block);
}

static u64 flood_hash(void) {
	for (;;)
		hash(1, -1, block, 32), hash(3, 2, block, 16);
}

// flood_match looks for what each octet may be the begin of.
static u64 flood_match(void) {
	for (;;)
		match(0, -1, 0, block, sizeof block), match(1, 2, 0, block, sizeof block), match(1, -2, 0, block, sizeof block);
}

static u64 flood_scores(void) {
	for (u32 i = 0;; i++) {
		u8 key[2] = {'a' + i % 26, 'a' + i / 26 % 26};
		score(key, 2, 1ll << 62);
	}
}

static u64 flood_verdicts(void) {
	for (;;)
		reply(block, 4000), rcpt_verdict(0, verdict(REJECT, 550, 5, 1)), rcpt_verdict(0, 0);
}

static u64 flood_kv(void) {
	for (u32 i = 0;; i++)
		kv_set(&i, sizeof i, block, sizeof block - 1, 0), kv_get(&i, sizeof i, block, sizeof block);
}

// flood_submit asks for what never comes, and does not wait for it.
static u64 flood_submit(void) {
	for (;;)
		submit(1, "\x10\0\0\0never.test", 14);
}

static u64 wait_for_dns(void) {
	for (;;)
		if (dns(16, "never.test", 10, block, sizeof block) == -1)
			__builtin_trap();
}

static u64 wait_for_answer(void) {
	u32 h = submit(1, "\x10\0\0\0never.test", 14);
	for (;;)
		wait(h, 0x7fffffff, block, sizeof block);
}

static u64 flood_reply(void) {
	for (;;)
		reply(block, 4096);
}

// some_lines logs a thousand lines, which ends by itself.
static u64 some_lines(void) {
	for (int i = 0; i < 1000; i++)
		log(3, "a line\r\nconn=forged", 19);
	return CONTINUE;
}

// Replies. The text must not reach the client as it is.

static u64 say(const char *text, u32 n) {
	for (u32 i = 0; i < n; i++)
		block[i] = text[i];
	reply(block, n);
	return verdict(REJECT, 550, 5, 1);
}

// Memory that the host writes to is the same that it reads from.
static u64 overlap(void) {
	sess_set(mailbox, 4, mailbox, 4096);
	sess_get(mailbox, 4, mailbox, 4096);
	sess_get(mailbox, 4, mailbox + 2, 4094);
	hdr_get(0, mailbox, 4096);
	get(13, 0, mailbox + 1, 4095);
	config(0, mailbox, 4096);
	tag(mailbox, 8, mailbox, 8);
	for (u32 i = 0; i < 4096; i++)
		mailbox[i] = 0xff;
	return CONTINUE;
}

// reenter calls its own exports as the host does.
static u64 reenter(u32 hook, u32 len) {
	static u32 depth;
	if (subscribe(1 << 12) == 0)
		__builtin_trap();
	if (depth++ < 100)
		return mg1_init(0) == 0 ? TEMPFAIL : mg1_hook(hook, len);
	depth = 0;
	return CONTINUE;
}

static int is(const char *name) {
	u32 i = 0;
	while (name[i] && name[i] == mode[i])
		i++;
	return name[i] == mode[i];
}

static u64 act(u32 hook, u32 len) {
	if (is("loop")) return loop();
	if (is("exponential")) return exponential(100) & 1;
	if (is("mutual")) return ping(100) & 1;
	if (is("fill")) return fill();
	if (is("copy")) return copy();
	if (is("sleep")) return sleep();
	if (is("nap")) return nap();
	if (is("deep")) return deep(1) & 1;
	if (is("wide")) return wide(1) & 1;
	if (is("grow")) return grow();
	if (is("grow_and_trap")) return grow_and_trap();
	if (is("flood_log")) return flood_log();
	if (is("flood_stderr")) return flood_stderr();
	if (is("flood_random")) return flood_random();
	if (is("flood_get")) return flood_get();
	if (is("flood_session")) return flood_session();
	if (is("flood_find")) return flood_find();
	if (is("flood_header")) return flood_header();
	if (is("flood_tags")) return flood_tags();
	if (is("flood_body")) return flood_body();
	if (is("flood_rcpts")) return flood_rcpts();
	if (is("flood_reply")) return flood_reply();
	if (is("flood_parts")) return flood_parts();
	if (is("flood_hash")) return flood_hash();
	if (is("flood_match")) return flood_match();
	if (is("flood_scores")) return flood_scores();
	if (is("flood_verdicts")) return flood_verdicts();
	if (is("flood_kv")) return flood_kv();
	if (is("flood_submit")) return flood_submit();
	if (is("wait_for_dns")) return wait_for_dns();
	if (is("wait_for_answer")) return wait_for_answer();
	if (is("some_lines")) return some_lines();
	if (is("crlf")) return say("no\r\n250 yes", 11);
	if (is("cr")) return say("no\r250 yes", 10);
	if (is("nul")) return say("no\0yes", 6);
	if (is("latin1")) return say("caf\xe9", 4);
	if (is("wrong_class")) return verdict(REJECT, 550, 4, 0);
	if (is("wrong_code")) return verdict(REJECT, 250, 5, 0);
	if (is("odd_code")) return verdict(TEMPFAIL, 65535, 4, 0);
	if (is("unknown_action")) return 200;
	if (is("unknown_bits")) return 1ull << 60;
	if (is("accept")) return ACCEPT;
	if (is("overlap")) return overlap();
	if (is("reenter")) return reenter(hook, len);
	if (is("exit")) proc_exit(0);
	if (is("pointer")) return reply((void *)0xfffffff0, 0x20);
	if (is("length")) return log(1, block, -1);
	__builtin_trap();
}

u64 mg1_hook(u32 hook, u32 len) {
	if (hook != RCPT && hook != MESSAGE)
		return CONTINUE;
	return act(hook, len);
}

u64 mg1_init(u32 minor) {
	static char text[128];
	u32 n = config(0, text, sizeof text), from = 0, k = 0;
	while (from + 5 < n && !(text[from] == '"' && text[from + 1] == 'd' && text[from + 2] == 'o' && text[from + 3] == '"'))
		from++;
	for (from += 4; from < n && text[from] != '"'; from++)
		;
	for (from++; from < n && text[from] != '"'; from++)
		mode[k++] = text[from];
	mode[k] = 0;
	subscribe(1 << 5 | 1 << RCPT | 1 << MESSAGE);
	match_set(0, "\3\0\0\0a\xff" "b", 7);
	match_set(2, "\x0b\0\0\0(x+x+)+y[z]", 15);
	if (mode[0] == 'i' && mode[1] == 'n' && mode[2] == 'i' && mode[3] == 't' && mode[4] == '_') {
		for (k = 0; mode[k + 5]; k++)
			mode[k] = mode[k + 5];
		mode[k] = 0;
		if (is("bad_mailbox"))
			return 0xffffffffull << 32 | 4096;
		if (is("small_mailbox"))
			return (u64)(u32)mailbox << 32 | 100;
		if (is("large_mailbox"))
			return (u64)(u32)mailbox << 32 | 0x7fffffff;
		if (is("no_mailbox"))
			return 0;
		act(INIT, minor);
	}
	return (u64)(u32)mailbox << 32 | sizeof mailbox;
}
