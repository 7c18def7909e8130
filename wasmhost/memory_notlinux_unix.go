//go:build unix && !linux

package wasmhost

const noReserve = 0
