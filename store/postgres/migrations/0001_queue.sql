-- The queue. What callers name is bytea: names of strangers may hold any octets, and text
-- may not. There are no foreign keys, whose checks cost a look-up for each row: the program
-- removes what belongs together in one transaction.

-- A message with its envelope. A content of up to 256 KiB is in the row (body); a larger one
-- is in chunks under the name in blob.
CREATE TABLE message (
	id            uuid        PRIMARY KEY,
	arrived       timestamptz NOT NULL,
	expires       timestamptz NOT NULL, -- the year 1 is never
	size          bigint      NOT NULL,
	priority      smallint    NOT NULL,
	sender        bytea       NOT NULL,
	sender_domain bytea       NOT NULL,
	envelope      bytea       NOT NULL,
	blob          uuid,
	sum           bigint      NOT NULL, -- CRC-32C of body
	body          bytea       NOT NULL
) WITH (
	-- Most mail fits into a page with its row. Moved out of line it would take an index entry
	-- for each two kilobytes.
	toast_tuple_target = 8160,
	autovacuum_vacuum_scale_factor = 0.05,
	autovacuum_vacuum_insert_scale_factor = 0.5
);
-- Mail is compressed already, or not worth the time.
ALTER TABLE message ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE message ALTER COLUMN envelope SET STORAGE EXTERNAL;

-- A recipient. State is 0 waiting, 1 held, 2 delivered, 3 failed. It is leased while until is
-- in the future; token says to whom. Neither is in an index, so that leasing a row touches
-- none.
CREATE TABLE recipient (
	message     uuid        NOT NULL,
	idx         integer     NOT NULL,
	destination bytea       NOT NULL,
	domain      bytea       NOT NULL,
	state       smallint    NOT NULL,
	rank        smallint    NOT NULL, -- (9 - priority) * 64 + tries, at most 63 of these
	due         timestamptz NOT NULL,
	tries       integer     NOT NULL,
	told        boolean     NOT NULL,
	envelope    bytea       NOT NULL,
	last        bytea,
	token       bigint,
	until       timestamptz,
	PRIMARY KEY (message, idx)
) WITH (
	fillfactor = 85,
	autovacuum_vacuum_scale_factor = 0.05,
	autovacuum_vacuum_insert_scale_factor = 0.5
);
CREATE INDEX recipient_due ON recipient (destination, rank, due) WHERE state = 0;

CREATE TABLE attempt (
	message uuid   NOT NULL,
	n       bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
	data    bytea  NOT NULL,
	PRIMARY KEY (message, n)
);

-- A content in chunks. Until is NULL while a message has it; else it is removed at that time:
-- the message is gone and somebody may still read, or the message is not there yet.
CREATE TABLE blob (
	id    uuid PRIMARY KEY,
	until timestamptz
);
CREATE INDEX blob_until ON blob (until) WHERE until IS NOT NULL;

CREATE TABLE chunk (
	blob uuid    NOT NULL,
	n    integer NOT NULL,
	sum  bigint  NOT NULL,
	data bytea   NOT NULL,
	PRIMARY KEY (blob, n)
);
ALTER TABLE chunk ALTER COLUMN data SET STORAGE EXTERNAL;

-- The transactions of the last hour that committed many callers' changes, and which of these
-- took effect. Whoever lost the connection in the middle of a COMMIT looks here.
CREATE TABLE batch (
	id   uuid        PRIMARY KEY,
	at   timestamptz NOT NULL DEFAULT clock_timestamp(),
	done integer[]   NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
