package peers

import "testing"

// OpenSSL runs openssl s_client against an address, sends it the input when TLS stands,
// and returns all that it printed, its own account of the handshake and what the server
// said, and its exit code: 0 if the handshake succeeded and the server ended the
// connection. So the input has to make the server do so, with QUIT for instance; lines in
// it end with CRLF, and are sent as they are. What an argument may be stands in the manual
// of s_client, for instance
//
//	-starttls smtp -name client.test    // or lmtp; it sends EHLO or LHLO by itself
//	-servername mx.test                 // or -noservername
//	-tls1_2, -alpn smtp, -cert FILE -key FILE
//	-CAfile FILE -verify_return_error -verify_hostname mx.test
//	-tls1 -cipher DEFAULT@SECLEVEL=0    // what is too old for its own defaults
//
// With -starttls its first EHLO is in clear and the input begins after the handshake. It
// ends the test if openssl runs longer than 30 s.
func OpenSSL(t testing.TB, addr, input string, args ...string) (output string, exitCode int) {
	t.Helper()
	path := program(t, "openssl", "openssl")
	// At the end of its input s_client would hang up before the answer is there, and
	// take a Q for a command of its own; -ign_eof turns both off.
	args = append([]string{"s_client", "-connect", addr, "-ign_eof"}, args...)
	return run(t, input, path, args...)
}
