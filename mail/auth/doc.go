// Package auth says and checks who a message is from. What it has so far is the signing of what
// we send with DKIM (RFC 6376): a [Signer] holds the keys of our domains and makes the fields
// DKIM-Signature of a message, one for each key of its domain. [ParseKey], [NewKey] and [Record]
// are for whoever makes keys and publishes them.
//
// # What is signed
//
// Header and body with the relaxed canonicalization, as mail servers wrap lines and change
// white space; the whole body, as what is added behind a part of it would pass for ours (RFC
// 6376, Section 8.2); and of the header the fields that a person sees or that say how the body
// is to be read. A field that may stand in a message once is signed once more than it is there,
// so that nobody can add a second one (Section 8.15); of some that readers see, nobody can add a
// first one either. Trace fields and the signatures of others are not signed.
package auth
