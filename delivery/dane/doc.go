// Package dane finds the TLSA records of a mail host and holds its certificate against
// them (RFC 6698, RFC 7671, RFC 7672).
//
// # The idea
//
// A host that publishes TLSA records in a signed zone says two things: that it speaks
// TLS, and with which certificate or key. The first is worth as much as the second, since
// whoever can strip STARTTLS from a dialogue needs no certificate. So the outcome of a
// look-up is one of four, and they must not be mixed up:
//
//	no records      the zone says so, or says nothing that could be believed:
//	                DANE does not apply
//	usable records  TLS, with a certificate that matches one of them
//	none usable     TLS, with any certificate
//	unknown         the host is not used now; another host, or the same one later.
//	                An error, of Lookup
//
// [Lookup] does the first half, from the name of a host to a [Set]; [Verify] the second,
// from the certificates of a handshake to a [Match]. Each is of use alone. Neither keeps
// anything, and all of it is safe for concurrent use.
//
// # What a record says
//
//	 0        1        2        3
//	+--------+--------+--------+---------------- - -
//	| usage  |selector| mtype  | association data
//	+--------+--------+--------+---------------- - -
//
// Usage 3, DANE-EE: the server's own certificate or key. Neither its name nor its dates
// count; the record alone binds the key to the host (RFC 7672, Section 3.1.1). Usage 2,
// DANE-TA: one that has issued it, be it over others. Names and dates count then. Usages
// 0 and 1 ask for a certificate of a public authority besides, which mail between hosts
// cannot rely on (RFC 7672, Section 3.1.3): such records are not usable here.
package dane
