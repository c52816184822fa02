//! PCI: configuration space (PCI Local Bus 3.0, chapter 6), MSI-X (6.8.2), and one root bus with both ways to reach
//! configuration space: mechanism 1 (3.2.2.3.2) and the ECAM (PCI Express 4.0, 7.2.2).

pub mod bus;
pub mod config;
pub mod msix;

/// One function on the bus. All methods accept any offset and any length: the guest chooses both.
///
/// The bus calls them from vCPU threads, one at a time per function, and asks for [`Function::bar`] after each write
/// to configuration space; between two such writes the answer must not change.
pub trait Function: Send {
    /// Fills `data` from configuration space at `offset`; zeroes where there is no register.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes `data` to configuration space at `offset`; what is read-only stays as it is.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// The addresses that BAR 0 decodes now, if memory decoding is on.
    fn bar(&self) -> Option<std::ops::Range<u64>>;
    /// Fills `data` from BAR 0 at `offset`.
    fn read_bar(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` to BAR 0 at `offset`.
    fn write_bar(&mut self, offset: u64, data: &[u8]);
}
