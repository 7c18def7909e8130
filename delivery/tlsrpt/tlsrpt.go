// Package tlsrpt tells other domains how TLS went when we sent mail to them, and reads what
// others tell us (SMTP TLS Reporting, RFC 8460).
//
// A domain that publishes an MTA-STS policy or TLSA records cannot see whether they work: a
// sender that they keep from delivering only tries again later. So it asks, in a TXT record at
// _smtp._tls, for a report a day from each sender.
//
//	sessions ──Record──> counts of the day ──flush──> store, a row for each node
//	                                                    │ after midnight UTC: the leader
//	                                                    v
//	              _smtp._tls.example.com TXT ──> Report ──> mail or HTTPS
package tlsrpt

import (
	"net/netip"
	"time"
)

// tlsrpt.go: what is counted.

// PolicyType is the kind of policy that a session was held to. RFC 8460, Section 4.4.
type PolicyType string

// The types of policies.
const (
	TLSA     PolicyType = "tlsa"            // DANE
	STS      PolicyType = "sts"             // MTA-STS, in mode enforce or testing
	NoPolicy PolicyType = "no-policy-found" // neither
)

// ResultType is why a session was not as its policy wants it. RFC 8460, Section 4.3.
type ResultType string

// The types of results: first those of the negotiation, then those of policies.
const (
	STARTTLSNotSupported    ResultType = "starttls-not-supported"
	CertificateHostMismatch ResultType = "certificate-host-mismatch"
	CertificateExpired      ResultType = "certificate-expired"
	CertificateNotTrusted   ResultType = "certificate-not-trusted"
	ValidationFailure       ResultType = "validation-failure" // any other

	TLSAInvalid         ResultType = "tlsa-invalid"
	DNSSECInvalid       ResultType = "dnssec-invalid"
	DANERequired        ResultType = "dane-required"
	STSPolicyFetchError ResultType = "sts-policy-fetch-error"
	STSPolicyInvalid    ResultType = "sts-policy-invalid"
	STSWebPKIInvalid    ResultType = "sts-webpki-invalid"
)

// Policy is a policy as it was applied. RFC 8460, Section 4.4.
type Policy struct {
	// Type is its kind; empty is NoPolicy.
	Type PolicyType
	// Strings is the policy itself: the lines of an MTA-STS policy, or the TLSA records in the
	// form of RFC 6698, Section 2.2, such as "3 0 1 1F850A337E6DB9C6...". Empty for NoPolicy.
	Strings []string
	// Domain is the policy domain: of MTA-STS the domain of the recipient, of DANE the TLSA
	// base domain. Empty is the Domain of the Event.
	Domain string
	// MXHosts are the patterns of the MTA-STS policy's mx keys.
	MXHosts []string
}

// Failure is what was wrong with a session. RFC 8460, Section 4.4. Text that is too long is
// cut when it is counted.
type Failure struct {
	// Type is required.
	Type ResultType
	// SendingIP is the address that we sent from, ReceivingIP the one that we spoke to. The
	// zero Addr is not known.
	SendingIP, ReceivingIP netip.Addr
	// ReceivingHost is the MX host, ReceivingHelo what it called itself in its reply to EHLO.
	ReceivingHost, ReceivingHelo string
	// Reason is a word or two on the cause, for programs, such as "bogus" or the name of a DNS
	// error. Additional is a line on it for people, or a URI.
	Reason, Additional string
}

// Event is a session with a host, or a try to have one, as far as TLS goes.
type Event struct {
	// Time is when it was. Zero is now.
	Time time.Time
	// Domain is the domain of the recipients, in A-labels: the one that is told. Events
	// without a domain, such as sessions with an address literal, are not counted.
	Domain string
	// Policy is what the session was held to.
	Policy Policy
	// MXHost is the host; empty if there was no session because of the Failure.
	MXHost string
	// Failure is what was wrong; nil if the session was as the policy wants it.
	Failure *Failure
}

// Recorder counts events. Record never blocks: what cannot be kept is dropped. It is safe for
// concurrent use, and keeps nothing of the slices in an event. Sessions for messages that no
// policy holds for (TLS-Required: No) are not recorded: reports are such messages, and there
// would be a report about each.
type Recorder interface {
	Record(Event)
}
