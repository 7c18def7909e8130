-- What nodes share beside the queue.

CREATE TABLE module (
	digest text  PRIMARY KEY,
	data   bytea NOT NULL
);

-- The row of a name is what its changes lock.
CREATE TABLE name (
	name   bytea   PRIMARY KEY,
	number integer NOT NULL
);
CREATE TABLE version (
	name   bytea       NOT NULL,
	number integer     NOT NULL,
	digest text        NOT NULL,
	since  timestamptz NOT NULL,
	by     bytea       NOT NULL,
	PRIMARY KEY (name, number)
);
CREATE INDEX version_digest ON version (digest);

-- Used are the octets of keys and values in a space. Its row is what changes lock.
CREATE TABLE space (
	name bytea  PRIMARY KEY,
	used bigint NOT NULL
);
CREATE TABLE kv (
	space   bytea NOT NULL,
	key     bytea NOT NULL,
	value   bytea NOT NULL,
	expires timestamptz,
	PRIMARY KEY (space, key)
);
CREATE INDEX kv_expires ON kv (expires) WHERE expires IS NOT NULL;

-- Data is encrypted, with the name as associated data.
CREATE TABLE file (
	name     bytea       PRIMARY KEY,
	data     bytea       NOT NULL,
	size     bigint      NOT NULL,
	modified timestamptz NOT NULL
);
CREATE TABLE lock (
	name  bytea       PRIMARY KEY,
	token bigint      NOT NULL,
	until timestamptz NOT NULL
);

CREATE TABLE policy (
	kind    bytea       NOT NULL,
	domain  bytea       NOT NULL,
	data    bytea       NOT NULL,
	fetched timestamptz NOT NULL,
	refresh timestamptz NOT NULL,
	expires timestamptz NOT NULL,
	PRIMARY KEY (kind, domain)
);
CREATE INDEX policy_refresh ON policy (kind, refresh);

CREATE TABLE node (
	name bytea       PRIMARY KEY,
	seen timestamptz NOT NULL,
	info bytea       NOT NULL
);
CREATE TABLE leader (
	work  bytea       PRIMARY KEY,
	node  bytea       NOT NULL,
	until timestamptz NOT NULL
);
